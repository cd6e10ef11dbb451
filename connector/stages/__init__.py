"""LightningModules and the stage loop; measures and figures of a finished run."""
