"""Read what an untrusted sender sent: files, configs, tokenizers and chat templates, within bounds."""
