"""Migrations of the feedback store, run when it is opened."""
