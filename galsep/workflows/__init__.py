"""The commands as functions: configuration in, result out."""
