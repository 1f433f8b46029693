"""Episodes as a LeRobotDataset (format v3.0) and back: `export.to_lerobot`, `bags.from_lerobot`.

Layout of the format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3. Needs the optional packages `pyarrow` and `av`.
"""
