"""The generator: masked autoencoder, its encoder and decoder, skips and RGB heads."""
