"""Chain complexes and exact linear algebra: what the families of analyses share."""
