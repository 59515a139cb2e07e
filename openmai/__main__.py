from openmai.cli import main

raise SystemExit(main())
