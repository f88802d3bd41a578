"""The smallest useful Flask application."""
import os

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def index():
    return f"Hello from {os.environ.get('ARCO_COMPONENT', 'Flask')}\n"


@app.post("/upper")
def upper():
    return request.get_data(as_text=True).upper()
