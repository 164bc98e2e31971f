"""Tasks: one LightningModule per file; the backbone's model is passed in."""
