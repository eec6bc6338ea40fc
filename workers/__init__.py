"""The GPU side: resident models advanced one denoise step at a time.

`process` claims jobs and keeps leases alive, `engine` prepares, steps and finishes them,
`scheduler` decides who steps together. Knows the job layer's vocabulary, but no HTTP.
"""
