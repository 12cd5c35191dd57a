"""The ground floor: settings, errors, the console, this machine, the run folder; it knows no model."""
