"Encoders, the systems made of them, how they are built by name, saved and read."
