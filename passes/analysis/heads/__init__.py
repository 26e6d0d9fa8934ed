"""What tells heads apart: where their weight goes, how far, and what many layers make of it."""
