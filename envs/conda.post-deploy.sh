# Made from requirements.lock by `make lock`: packages whose own caps the lock exceeds.
python -m pip install --no-deps \
    "autofaiss==2.18.0" \
    "clip-retrieval==2.45.0" \
    "embedding-reader==1.8.1" \
    "sentence-transformers==2.7.0"
