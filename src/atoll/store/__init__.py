"""Where runs are kept: the database, run folders, checkpoints, the journal of the open round, client memory."""
