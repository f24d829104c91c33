"""A pytest session: what its tests found, collected where they ran; progress, header, closing table and report."""
