"""What a run did, as one HTML file that needs nothing else: no network, no script, no folder of images."""
