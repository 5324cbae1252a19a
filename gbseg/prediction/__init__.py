"""Prediction: single images, folders, tiles, submissions, and the test of a checkpoint."""
