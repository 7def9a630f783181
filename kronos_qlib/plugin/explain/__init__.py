"""Why a model gives a name the score that it has."""
