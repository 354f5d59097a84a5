"""How an engine computes the folds that it is given: eagerly, from captured programs, several clients as one."""
