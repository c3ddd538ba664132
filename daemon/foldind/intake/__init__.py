"""The one door for submissions, whichever way they come."""
