"""Configuration: YAML layers, a schema read from constructors' signatures, validation, builders."""
