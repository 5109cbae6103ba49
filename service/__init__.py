"""The online half: serves student bundles over HTTP. Never imports torch."""
