def draw(directory, progress): raise NotImplementedError
