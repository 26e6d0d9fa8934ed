"""What every item of an analysis is: its unit, what it says, and what it licenses."""

from __future__ import annotations

from dataclasses import dataclass

#: What proof levels mean.
LEGEND = {
    "P0": "bit-exact: integers, or numbers that are represented without rounding",
    "P1": "exact in real arithmetic, of the numbers that were studied",
    "P2": "within the tolerance that the result states",
    "P3": "a diagnostic: it may guide, and licenses nothing",
}


@dataclass(frozen=True)
class Item:
    """``unit`` of the value, "" for a pure number; ``says`` in one sentence; ``licenses`` what may be built on it, ""
    where nothing; ``causal`` is False for what is the same of every causal pattern."""

    unit: str
    says: str
    licenses: str = ""
    causal: bool = True


_Z = "standard deviations"
_SQUARE = "Queries and keys are different tokens, so that there is no chain and no graph of tokens."

ITEMS: dict[str, Item] = {
    "no_distribution": Item(
        "", "What the model multiplies with values has rows that do not sum to 1 or entries below 0: not analysed."
    ),
    # heads
    "previous_token_mass": Item("share of weight", "Mean weight of the token just before the query."),
    "self_mass": Item("share of weight", "Mean weight of the query's own token."),
    "sink_mass": Item("share of weight", "Mean weight of the first key; near 1, the head mostly rests."),
    "busiest_key_mass": Item("share of weight", "Mean weight of the key that receives most of all."),
    "busiest_key": Item("position", "The key that receives most of all."),
    "mean_distance": Item(
        "tokens", "Mean distance between a query and the keys that it weighs.",
        "Tail bound: keys d or more tokens away hold at most mean distance / d of the mean weight (Markov).",
    ),
    "effective_context": Item(
        "keys", "How many equal weights would have a row's entropy, in the mean over rows.",
    ),
    "effective_context_share": Item("share of keys", "The same over the keys that a query may see; 1 if equal."),
    "induction_mass": Item(
        "share of weight", "Weight on keys that followed an earlier occurrence of the query's token: what an induction "
        "head has.",
    ),
    "induction_excess": Item("share of weight", "The same beyond what equal weights would put there."),
    "duplicate_mass": Item("share of weight", "Weight on earlier occurrences of the query's own token."),
    "duplicate_excess": Item("share of weight", "The same beyond what equal weights would put there."),
    "absorption_times": Item("steps", "Mean steps along the weights from each token until none leads elsewhere."),
    "mean_absorption_time": Item(
        "steps", "Mean steps along the weights until the first token is reached (of causal heads): how many layers of "
        "this head alone it takes to forget where one started.",
        "Tail bound: after t steps at most mean / t of the weight is still on its way (Markov).",
    ),
    "rollout": Item(
        "share of tokens", "How much of each input token stands in each token behind the last layer, half of a token "
        "passing a layer unchanged.",
    ),
    "rollout_context": Item("tokens", "How many equal shares would have a rollout row's entropy, in the mean."),
    "rollout_to_first": Item("share of tokens", "How much of the first token stands in the others behind all layers."),
    "flow_to_last": Item(
        "share of tokens", "The most that could flow from each input token to the last one through all layers.",
        "Bound: no assignment of credit along the weights gives a token more.",
    ),
    # topology
    "topology": Item("", "Where there is nothing to compare with null models."),
    "longest_h0_bar": Item("nats", "How much lighter the weight is at which the last part joins."),
    "longest_h1_bar": Item("nats", "Over what range of weights the longest loop stays open; noise has such too."),
    "total_persistence_h1": Item("nats", "Lengths of all loops added up; noise has thousands."),
    **{
        f"{statistic}_z_{model}": Item(
            _Z, f"How far {what} is from {chance}; within ±2, the head has no more of it than chance.",
        )
        for statistic, what in (
            ("longest_h0", "the longest bar of parts"), ("longest_h1", "the longest loop"),
            ("total_h1", "the total length of loops"),
        )
        for model, chance in (
            ("shuffled", "rows with their weights in random order"), ("entropy", "random rows of the same entropies"),
        )
    },
    # homotopy
    "homotopy_groups": Item("", _SQUARE),
    "components": Item("parts", "Parts of the graph of weights above the mean weight."),
    "connecting_threshold": Item("weight", "The largest threshold at which strong weights join all tokens."),
    "fundamental_group": Item("group", "Loops of the clique complex at that threshold."),
    "order": Item("elements", "The order of that group."),
    "pi_2": Item("group", "Spheres of the clique complex at that threshold."),
    "spectral_sequence_converges_at": Item("page", "The page from which the threshold spectral sequence stays."),
    "likeliest_path": Item("tokens or tiles", "The likeliest way along the weights from the last token to the first."),
    "dataflow_free_loops": Item("loops", "Independent cycles of the program's data flow."),
    # cohomology
    "barcodes": Item("bars", "Parts and loops over all thresholds of −log weight."),
    "longest_bar_h0": Item("nats", "How much lighter the weight is at which the last part joins."),
    "longest_bar_h1": Item("nats", "Over what range of weights the most lasting loop stays open; see its z-score."),
    "homology": Item("groups", "Integral homology of the clique complex at the connecting threshold."),
    "betti_numbers": Item("ranks", "Parts, loops and voids of that complex; random weights have many."),
    "cup_products_of_h1": Item("products", "Pairs of loops that span a surface."),
    "dowker_barcodes": Item("bars", "Parts and loops of queries that share strongly weighted keys."),
    "dowker_longest_bar_h0": Item("nats", "How much lighter the weight is at which the last part of queries joins."),
    "dowker_longest_bar_h1": Item("nats", "Over what range of weights the most lasting loop of queries stays open."),
    "dataflow_betti_numbers": Item("ranks", "Parts and independent cycles of the program's data flow."),
    # arithmetic
    "ihara_zeta": Item("polynomial", "The inverse zeta function of the graph of weights above the mean weight."),
    "cycles_by_length": Item("cycles", "Prime closed walks of that graph, of each length."),
    "buffer_class": Item("polynomial", "Assignments of buffers to the program's values, counted for every number."),
    "least_buffers": Item("buffers", "The fewest buffers that hold the program's values.", "An arena of so many."),
    # information
    "information": Item("", "Some queries see no key, so that their rows are no laws."),
    "ergodic": Item("", "Why the chain of tokens has no stationary law that could be told."),
    "mean_row_entropy": Item(
        "nats", "Mean entropy of a row: how undecided the head is.",
        "Tail bound: what the k largest weights leave is at most entropy / log(k + 1) in the mean.",
    ),
    "least_row_entropy": Item("nats", "The entropy of the most decided row."),
    "edge_utilisation": Item("share of keys", "e^entropy over the number of keys, in the mean."),
    "largest_jacobian_norm": Item(
        "", "The most that a row of weights moves, for scores that move by 1.",
        "Bits: scores off by ε move weights by at most ε times this, to first order.",
    ),
    "recurrent_classes": Item("classes", "Sets of tokens that the chain does not leave; 1 if causal.", causal=False),
    "period": Item("steps", "After how many steps the chain may come back.", causal=False),
    "stationary": Item("law", "Where the chain is after many steps; the first token if causal.", causal=False),
    "spectral_gap": Item("", "1 − |λ₂|: how fast the chain forgets where it started."),
    "dobrushin": Item(
        "total variation", "How far the farthest two rows are apart.",
        "Bound: two laws come nearer by at least this factor in a step.",
    ),
    "dobrushin_bound": Item("total variation", "The farthest two rows are apart by no more than this.",
                            "Bound: two laws come nearer by at least this factor in a step."),
    "entropy_rate": Item("nats", "Entropy of the next token of the chain; 0 of causal heads.", causal=False),
    "information_flow": Item("nats", "What a token of the chain tells of the next; 0 of causal heads.", causal=False),
    "cross_tile_flow": Item("share of steps", "Steps of the chain that leave their tile.", causal=False),
    "cross_tile_information": Item("nats", "The part of the flow that crosses tiles.", causal=False),
    "stability": Item(
        "", "1 − dobrushin.", "Bound: the stationary law moves by at most the change of the weights over this.",
    ),
    "stability_bound": Item(
        "", "A lower bound of 1 − dobrushin.",
        "Bound: the stationary law moves by at most the change of the weights over this.",
    ),
    # quantum
    "query_key_state": Item("", "Some queries see no key, so that there is no state of queries and keys."),
    "query_key_entropy": Item(
        "nats", "Entanglement of queries and keys: e^ of it is how many different patterns the queries have.",
    ),
    "query_key_renyi_2": Item("nats", "The same by the probability that two queries' patterns collide."),
    "query_key_negativity": Item("", "The same by the negativity; (keys − 1)/2 if every query attends by itself."),
    "key_bloch_vector": Item(
        "", "First or second half of the keys as a qubit: z is the weight on the first half less that on the second, "
        "x how alike the two halves are weighed.",
    ),
    "fubini_study_step": Item("radians", "Mean angle between the patterns of successive queries; π/2 if disjoint."),
    "value_entropy": Item("nats", "Entropy of the values' directions: e^ of it is how many they take."),
    # crystal
    "lattice": Item(
        "tokens", "Shifts of queries and keys after which the weights repeat: exactly, or in a part of their variance.",
    ),
    "mask_translations": Item(
        "tokens", "Shifts of queries and keys that leave the mask as it is, exactly.",
        "Layout: one row of the mask, or one cell, stands for all of it.",
    ),
    "bias_translations": Item(
        "tokens", "Shifts of queries and keys that leave the bias as it is, exactly.",
        "Layout: one diagonal of the bias, or one cell, stands for all of it.",
    ),
    "wallpaper_group": Item("group", "The symmetries of weights that repeat exactly in two directions."),
    "toeplitz_share": Item(
        "share of the square norm", "How much of the weights depends on the distance alone; 1 if all.",
        "Bound: replaced by its diagonals' means, a head is off by √(1 − share) of its norm.",
    ),
    "symbol_winding": Item(
        "turns", "How the distances' generating function winds around 0: −1 for a head that takes the previous token, "
        "0 for one that takes its own.",
    ),
    "sound_speed": Item(
        "tokens", "How fast long waves run if weights are springs between tokens: the root of half the mean of squared "
        "distances by distance.",
    ),
    # scale
    "block_escape": Item("share of weight", "Weight that leaves blocks of 1, 2, 4, ... tokens, down to two blocks."),
    "half_escape_block": Item("tokens", "The first of these blocks that keeps half of the weight or more inside."),
    "escape_exponent": Item(
        "", "The power of a block's size by which the weight that leaves it falls, over what equal weights let leave: "
        "1 for heads that see near tokens alone, 0 for those that do not mind places.",
    ),
    "escape_exponent_interval": Item("", "Where that power lies with confidence 95 %, if it is one."),
    "pooling_defect": Item(
        "share of weight", "What pooling pairs of tokens loses: mean distance between what a query gives to pairs of "
        "keys and what its pair does.",
        "Pooling: 0 for a chain that is exactly lumpable to pairs.",
    ),
    "box_dimension": Item(
        "", "How pairs above the mean weight fill the pattern: 2 all over, 1 along lines, 0 in a few places.",
    ),
    "box_dimension_interval": Item("", "Where that dimension lies with confidence 95 %, if counts follow a power."),
    "attention_operations": Item("operations", "Multiplications and additions of the program's attentions."),
    "operations_of_a_sequence": Item(
        "operations", "Multiplications and additions of all attentions that were seen, for one batch element.",
    ),
    "eager_attention_bytes": Item("bytes", "What the largest attention would hold without tiles."),
    "refused": Item("", "It would have taken more than what was left of the budget."),
}  # fmt: skip

_BITS = Item(
    "bits", "Bits that hold each of these constants exactly, up to one scale.", "Bits: integers of this width."
)


def item_of(name: str) -> Item:
    """What an item is. One that is not known here, as those of passes of users' own, has no unit and no sentence."""
    if name.startswith("bits_of_"):
        return _BITS
    return ITEMS.get(name, Item("", ""))
