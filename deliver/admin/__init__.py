"""What an administrator does to mailboxes, whole trees of them; ``deliver.commands`` are their faces."""
