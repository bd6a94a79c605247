// A source to make the precompiled header with.
