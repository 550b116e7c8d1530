"""Plans on a GPU: do they answer as the CPU, survive what happens to them, and reach what was promised?"""
