"""What several tests need: small models, real vocabularies, servers, faults, oracles."""
