"""Related methods as pure functions beside the critic: each adds one idea to it, and each has a case with a closed-form answer in the tests."""
