"""The store: students, their numbered versions and the aliases that point at them; publishing and watching."""
