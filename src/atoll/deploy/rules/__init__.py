"""A site's own rules: which jobs it takes part in, what may leave it, whose signed jobs it believes; all of it enforced here."""
