"What all other folders stand on: errors, samples, seeds, files written whole, registries, settings."
