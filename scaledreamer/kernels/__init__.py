"""Operations that have a fast form: one folder each, the package door dispatches."""
