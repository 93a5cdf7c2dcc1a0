"""Process reward models: trained on step labels, outcomes or preferences, saved, loaded, used and judged."""
