"""llama.cpp behind a small typed surface: the only place with llama_cpp and ctypes."""
