"""What a client does with its batches: folds, one file each."""
