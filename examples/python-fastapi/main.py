"""A FastAPI application: typed parameters, JSON answers."""
from fastapi import FastAPI

app = FastAPI(title="Squares")


@app.get("/")
def index() -> dict[str, str]:
    return {"hello": "FastAPI"}


@app.get("/square/{number}")
def square(number: int) -> dict[str, int]:
    return {"square": number * number}
