"""GGUF files of llama.cpp as sources: read, dequantized, and written as folders in the Hugging Face layout."""
