"""Three environments that the embedded policy learns in: see docs on environments."""
