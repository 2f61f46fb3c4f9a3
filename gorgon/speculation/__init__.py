"""Token trees and acceptance: pure NumPy, no llama, no clock."""
