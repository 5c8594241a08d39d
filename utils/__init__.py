"""What the training scripts share; each module is one step of a run, in the order of the README's file map."""
