"""Building blocks of pages: values, charts, macros and the stylesheet of the report, of experiments and of `watch`."""
