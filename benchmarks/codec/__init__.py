"""The study of the action codec: rate, distortion and prediction, against its peers."""
