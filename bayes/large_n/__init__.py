"""Gaussian processes of many rows: random features, and a choice by the number of rows."""
