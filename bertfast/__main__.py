from bertfast.cli import app

app()
