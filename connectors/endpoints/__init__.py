"""The API's endpoints, one module each: from a row to a request, from a reply to typed values."""
