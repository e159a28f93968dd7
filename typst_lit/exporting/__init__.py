"""What was trained, in the forms that other engines take, each opened again and compared."""
