"""Speed of a policy of OpenVLA-OFT's shape with random weights."""
