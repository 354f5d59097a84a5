"""Who may speak: certificates, the tokens that buy one, and what takes them back."""
