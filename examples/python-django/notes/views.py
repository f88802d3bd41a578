"""One page."""
from django.shortcuts import render

NOTES = ["Django works", "static files are collected while it is built"]


def index(request):
    return render(request, "notes/index.html", {"notes": NOTES})
