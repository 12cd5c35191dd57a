"""How many examples a property is tried with: as many as its test says, or 25 where `make fast` asks for few."""

from hypothesis import settings

FEW = 25
settings.register_profile("full", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=FEW, derandomize=True)


def tries(full: int) -> int:
    """Return the number for `@settings`, whose number goes before the profile's."""
    return min(full, FEW) if settings.get_current_profile_name() == "fast" else full
